"""Models as Hugging Face folders hold them: a config.json and weights in safetensors files."""
