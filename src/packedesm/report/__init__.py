"""What is said about results: how exact, how fast, how full."""
