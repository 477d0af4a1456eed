"""What is said of one purification or audit: its page, its verdict, its lines in a terminal."""
