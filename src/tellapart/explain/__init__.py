"""What a network looked at: heat maps, and whether they can be believed."""
