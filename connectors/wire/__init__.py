"""Modules made from the .proto files by `make proto`; nothing here is written by hand."""
