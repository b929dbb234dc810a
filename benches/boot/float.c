/* The floating-point job of the benchmark guest: scalar double arithmetic, and loops that a compiler turns into AdvSIMD. */
#include <math.h>
#include <stdio.h>

enum { SIZE = 320, STEPS = 4000000 };

static double a[SIZE][SIZE], b[SIZE][SIZE], c[SIZE][SIZE];
static float samples[1 << 14];

static double orbit(void)
{
    double x = 1, y = 0, vx = 0, vy = 1;
    for (int step = 0; step < STEPS; step++) {
        double r2 = x * x + y * y, pull = 0.001 / (r2 * sqrt(r2));
        vx -= pull * x, vy -= pull * y;
        x += 0.001 * vx, y += 0.001 * vy;
    }
    return x * x + y * y;
}

static double multiply(void)
{
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++)
            a[i][j] = i - j, b[i][j] = i * 0.5 + j;
    for (int i = 0; i < SIZE; i++)
        for (int k = 0; k < SIZE; k++)
            for (int j = 0; j < SIZE; j++)
                c[i][j] += a[i][k] * b[k][j];
    return c[SIZE / 2][SIZE / 3];
}

static double filter(void)
{
    for (int i = 0; i < 1 << 14; i++)
        samples[i] = (float)(i % 97) / 97;
    for (int round = 0; round < 600; round++)
        for (int i = 1; i < (1 << 14) - 1; i++)
            samples[i] = samples[i] * 0.5f + (samples[i - 1] + samples[i + 1]) * 0.25f;
    return samples[1234];
}

int main(void)
{
    printf("%.9f %.3f %.6f\n", orbit(), multiply(), filter());
    return 0;
}
