"""Training generators and fitting banks; nothing here is needed to use them."""
