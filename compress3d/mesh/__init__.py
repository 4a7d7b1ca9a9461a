"""Triangle meshes: faces pruned by what silhouettes say of them."""
