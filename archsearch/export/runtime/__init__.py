"""What an exported model is made of beside its blocks; needs torch alone."""
