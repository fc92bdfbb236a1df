"""Detection in numpy: ground truth, the anchor grid, inputs and results.

Some of it has a twin in ``yolo_loss``: the server and the client load no torch. Tests compare the twins.
"""
