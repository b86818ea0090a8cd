"""The web page: ask about a picture and watch what pruning keeps (extra `demo`)."""
