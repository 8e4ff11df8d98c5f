"""Generated from proto/ciar/v1/ciar.proto by `make proto`; committed, never edited."""
