"""The assistant over HTTP: streaming turns, search, recommendations, the page, and what keeps all of it within bounds."""
