"""How often engines are switched when there are more models than room, against the best that could have been done."""
