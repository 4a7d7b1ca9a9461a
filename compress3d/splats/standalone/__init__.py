"""A scene as one HTML page with a viewer of its own: nothing to install, no network, opens from a disk or an e-mail."""
