"""After the cut: what stays is made to do the work of what went."""
