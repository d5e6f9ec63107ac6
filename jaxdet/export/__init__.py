"""Trained models as files for use elsewhere: a program, and the check of its predictions.

- `program`: a run as one function from pixels to predictions in pixels of the original images
- `package`: the files `NAME.jaxdet`, which hold a compiled program, the weights and their hashes
- `model`: prediction with such a file, without the code of the network
- `onnx_graph`: networks in ONNX
- `onnx_nms`: non-maximum suppression in ONNX
- `replay`: a written file is compared with its run, in a process of its own
"""
