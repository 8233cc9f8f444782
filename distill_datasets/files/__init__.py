"""Files that are written whole or not at all: JSON, safetensors, rows, Parquet, YAML."""
