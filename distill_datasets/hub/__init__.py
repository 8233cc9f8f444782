"""The Hugging Face Hub: the only room that names its client."""
