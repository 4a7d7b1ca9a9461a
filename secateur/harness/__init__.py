"""Is a method any good? Problems with a known answer, controls to compare with, and reports on a network."""
