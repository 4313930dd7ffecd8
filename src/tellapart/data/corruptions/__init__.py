"""What `tellapart.data.corrupt` does to pictures, one module per group of corruptions."""
