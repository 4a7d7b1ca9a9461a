"""An interactive view of a scene in the browser, through viser: what to show is computed here, viser draws it."""
