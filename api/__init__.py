"""The REST api: the admin UI's, the clients' and the agents' way in. One folder per noun."""
