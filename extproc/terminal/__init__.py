"""What the commands draw in a terminal: tables of a status, the live picture, `top`, progress."""
