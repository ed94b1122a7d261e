"""Floor 0: the words of the field. Nothing here imports torch or any room above."""
