"""Folders of images against folders of images: distances between sets, and how alike images of one name are."""
