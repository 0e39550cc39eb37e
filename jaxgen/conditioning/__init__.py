"""What a model is told to make: classes, attributes, texts, embeddings."""
