"""Pure maths on arrays: no model, no torch, nothing read or written. One file a subject."""
