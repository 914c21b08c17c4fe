"""Operations that several blocks share, one to a file."""
