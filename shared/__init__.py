"""What device and cloud must agree on: values that travel, decoding mathematics, models, the wire."""
