"""The web page over a gallery and its JSON API."""
