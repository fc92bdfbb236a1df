"""``yolo-assigner explain``: why each ground truth of a request is learned or not, as one page."""
