"""Operations of the tile level."""
