"""The assignment and the whole loss step in few GPU kernels, written in Triton.

``launch`` says where the kernels apply, ``assignment`` and ``loss`` launch them; the kernels themselves are in
``functions``, ``assignment_kernels`` and ``loss_kernels``, which need the package ``triton`` and are imported when the
implementation ``triton`` is chosen.
"""
