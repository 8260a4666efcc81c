"""Pictures and recordings: the files that rows name, and what is done with them before and after they are sent."""
