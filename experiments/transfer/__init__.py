"""What a teacher is worth to a student whose tokenizer cuts the text otherwise."""
