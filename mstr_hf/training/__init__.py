"""Training of mCLIP, Spotter and Refiner: one loop, what it reads, and the steps between the stages."""
