"""What a network costs to run: engines, times, memory, and why it is not faster."""
