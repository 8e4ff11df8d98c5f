"""The wire: messages <-> protobuf. Knows nothing of gRPC calls, models or sessions."""
