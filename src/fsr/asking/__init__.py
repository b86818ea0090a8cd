"""Load a model, open a picture, ask a question: what the command line, the report and the demo share."""
