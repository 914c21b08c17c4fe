"""Operations that several blocks may share: each beside a naive reference that it must equal."""
