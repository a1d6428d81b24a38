"""The Open Inference Protocol over gRPC, on its own port; the stubs are those that tritonclient ships."""
