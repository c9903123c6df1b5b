"""What has to do with the Hugging Face Hub."""
