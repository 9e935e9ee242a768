"""How evenly rows and whole tables load the ranks, counted for 2 to 1,024 of them."""
