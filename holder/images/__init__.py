"""Images: where they come from, how they are kept, and the kernel inside them."""
