"""What a person sees: the live view, tables, drawings and notes."""
