"""Operations that blocks rest on, one to a file."""
