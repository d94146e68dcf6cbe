"""What a clip is: the record, emotions, sound, corpora, made speech."""
