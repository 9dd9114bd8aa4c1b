"""Real pictures to run pinlake on: fetches Debian's clip art and makes three days of a platform's exports of it."""
