"""What is asked: who trains, who is tested, and the runs that answer it."""
