"""To ONNX, and the gate that proves the exported model answers as the trained one."""
