"""A program written as an ONNX model, outside, at export."""
