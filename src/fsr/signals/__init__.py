"""What a method reads besides features: attention of one vision layer, relevance to the question, the question
itself."""
