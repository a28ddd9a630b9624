"""What CIPO adds to verl's V1 trainers: what each row is, advantages, losses, one joint update, rho and the guard."""
